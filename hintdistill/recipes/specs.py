"""Define divergences and weights as discriminated unions: each kind or shape is a model with only its own parameters.

The models are made from the registries' entries on first use, so that a registered part is checked like the shipped
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from hintdistill.core.errors import ConfigError
from hintdistill.core.parts import Parameter
from hintdistill.core.registry import NameIn, nearest, require
from hintdistill.recipes import parts
from hintdistill.recipes.values import Part, Positive, check, json_schema


class Spec(Part):
    """Hold a part named by its kind, with the parameters of that kind."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the kind that are set."""
        common = _common(type(self))
        return {n: getattr(self, n) for n in type(self).model_fields if n not in common and n in self.model_fields_set}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain data; the other process makes the models of the kinds again."""
        return _made_anew, (isinstance(self, WeightSpec), self.model_dump())

    @model_serializer(mode="wrap")
    def _as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return only the parameters that are set, even to a default; the others are left to the implementation."""
        data: dict[str, Any] = plain(self)
        common = _common(type(self))
        return {k: v for k, v in data.items() if k in common} | self.parameters


class DivergenceSpec(Spec):
    """Describe the comparison of student and target; `divergence_spec` makes the model of a kind."""

    kind: str
    pointwise_clip: Positive | None = None
    token_clip: Positive | None = None
    signal: str = "log"
    """Signal of a policy gradient; no other kind has this key."""

    @property
    def entry(self) -> parts.Divergence:
        """The registry's entry of the kind."""
        return parts.DIVERGENCES.get(self.kind)

    @model_validator(mode="after")
    def _sound(self) -> DivergenceSpec:
        if self.entry.reads != "distributions" and self.pointwise_clip is not None:
            raise ValueError(f"pointwise_clip limits vocabulary entries, but {self.kind} does not compare any")
        bounds = [k for k in ("clip_low", "clip_high", "cap", "ratio") if k in self.parameters]
        if self.entry.has_signal and bounds and self.parameters.get("behaviour") is None:
            raise ValueError(f"{bounds[0]} limits an importance ratio, which needs `behaviour: sampler`")
        if self.parameters.get("gap_at") == "sampling" and self.signal in ("advantage", "tanh_contrast"):
            raise ValueError(f"gap_at selects the log S(y) of the gap, but the signal {self.signal} does not use it")
        if "cap" in bounds and {"clip_low", "clip_high"} & set(bounds):
            raise ValueError("cap and clip_low or clip_high both limit the importance ratio; keep only one of them")
        if "baseline_k" in self.parameters and self.parameters.get("baseline") is None:
            raise ValueError("baseline_k belongs to a baseline, which needs `baseline: value`")
        return self


@dataclass
class _Union:
    """Represent the discriminated union of a registry's entries; it annotates a field of a pydantic model."""

    base: type[Spec]
    key: str
    default: str
    what: str
    models: dict[Any, type[Spec]] = field(default_factory=dict)
    _within: bool = False

    def choose(self, data: Mapping[str, Any]) -> type[Spec]:
        """Return the model for the kind that the data name. Raises ValueError, with the nearest name, for an unknown
        one."""
        name = str(data.get(self.key, self.default))
        if self.base is WeightSpec:
            shape = parts.SHAPES.get(parts.SHAPES.require(name))
            return self._model((shape,), name, shape.parameters, {})
        entry = parts.DIVERGENCES.get(parts.DIVERGENCES.require(name))
        if not entry.has_signal:
            return self._model((entry,), name, entry.parameters, {})
        signal = require(str(data.get("signal", "log")), parts.SIGNALS, "signal")
        own = tuple(p for p in entry.parameters if p.name != "signal")
        return self._model((entry, signal), name, own, {signal: parts.SIGNALS[signal]})

    def _model(
        self, key: tuple[Any, ...], name: str, own: tuple[Parameter, ...], signal: dict[str, tuple[Parameter, ...]]
    ) -> type[Spec]:
        if key not in self.models:
            fields: dict[str, Any] = {self.key: (Literal[name], name if name == self.default else ...)}
            for of, parameters in {name: own, **signal}.items():
                for p in parameters:
                    if p.name in self.base.model_fields or p.name in fields:
                        raise ConfigError(
                            f"the {self.what} {name} may not have a parameter `{p.name}`, because that key is already "
                            "used"
                        )
                    fields[p.name] = (_annotation(of, p), None)
            for chosen in signal:
                fields["signal"] = (Literal[chosen], chosen)
            title = "".join(w.title() for w in (*name.split("_"), *signal, self.what))
            self.models[key] = create_model(title, __base__=self.base, __doc__=f"The {self.what} {name}.", **fields)
        return self.models[key]

    def validate(self, value: Any) -> Spec:
        """Return a part from plain data; errors keep their location."""
        if isinstance(value, self.base):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"a {self.what} must be a mapping with the key `{self.key}`, not {value!r}")
        model = self.choose(value)
        name = str(value.get(self.key, self.default))
        known = set(model.model_fields)
        if name not in parts.DIVERGENCES or not parts.DIVERGENCES.get(name).has_signal:
            known -= {"signal"}
        for key in value:
            if key not in known:
                own = sorted(known - set(_common(model)))
                raise ValueError(
                    f"unknown key `{key}` of {self.what} {name}{nearest(str(key), known)}; it takes {', '.join(own) or 'none'}"
                )
        return model.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        as_it_is = core_schema.plain_serializer_function_ser_schema(lambda v: v, return_schema=core_schema.any_schema())
        return core_schema.no_info_plain_validator_function(self.validate, serialization=as_it_is)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        if self._within:
            # a weight made of weights: the kinds are listed where it begins
            return {"type": "object", "properties": {self.key: {"type": "string", "default": self.default}}}
        return self.json_schema()

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of every kind with its parameters, discriminated by the key."""
        names = parts.SHAPES.names() if self.base is WeightSpec else parts.DIVERGENCES.names()
        kinds: list[dict[str, Any]] = []
        for name in names:
            signals = parts.SIGNALS if name in parts.DIVERGENCES and parts.DIVERGENCES.get(name).has_signal else ("",)
            for signal in signals:
                schema = self._schema_of(self.choose({self.key: name, **({"signal": signal} if signal else {})}))
                if not signal:
                    schema["properties"].pop("signal", None)
                kinds.append(_inlined(schema, schema.pop("$defs", {})))
        return {"oneOf": kinds, "discriminator": {"propertyName": self.key}}

    def _schema_of(self, model: type[Spec]) -> dict[str, Any]:
        self._within = True
        try:
            return model.model_json_schema()
        finally:
            self._within = False


def _inlined(schema: Any, defined: Mapping[str, Any]) -> Any:
    """Return a schema with its references replaced by their targets, because it becomes a part of another schema."""
    if isinstance(schema, list):
        return [_inlined(s, defined) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(defined[schema["$ref"].rpartition("/")[2]], defined)
    return {k: _inlined(v, defined) for k, v in schema.items()}


def _annotation(kind: str, parameter: Parameter) -> Any:
    def checked(value: Any) -> Any:
        check(parameter, kind, value)
        return value

    return Annotated[Any, AfterValidator(checked), WithJsonSchema(json_schema(parameter))]


class WeightSpec(Spec):
    """Describe one factor of a token's weight: a shape of a score, a soft-or or product of such factors, or another
    term's mask."""

    score: Annotated[str, AfterValidator(lambda s: require(s, [*parts.SCORES, *parts.FACTS], "score"))] = "one"
    shape: Annotated[str, NameIn(parts.SHAPES)] = "identity"
    invert: bool = False
    """Use 1 - weight."""
    times_sign: bool = False
    """Multiply the score by the sign of the advantage."""
    id: str | None = None
    """Name under which the mask can be used again."""
    ref: str | None = None
    """Name of the mask to use."""
    soft_or: tuple[Weight, ...] = ()
    product: tuple[Weight, ...] = ()
    then: tuple[Weight, ...] = ()
    """Shapes applied to this weight in turn; their own scores are ignored."""

    @model_validator(mode="after")
    def _sound(self) -> WeightSpec:
        if self.soft_or and len(self.soft_or) != 2:
            raise ValueError("soft_or joins two weights")
        if (self.score in parts.SET_SCORES) != parts.SHAPES.get(self.shape).reads_set and not (
            self.ref or self.product
        ):
            wanted = ", ".join(sorted(parts.SET_SCORES))
            raise ValueError(f"{self.shape} of {self.score}: only set_softmax reads a set of values; it reads {wanted}")
        return self

    def scores(self) -> set[str]:
        """Return every score that this weight reads."""
        own = set() if self.ref or self.soft_or or self.product else {self.score}
        own |= {"adv_sign"} if self.times_sign else set()
        return own.union(*(w.scores() for w in (*self.soft_or, *self.product)))


DIVERGENCE_UNION = _Union(DivergenceSpec, "kind", "rkl", "divergence")
WEIGHT_UNION = _Union(WeightSpec, "shape", "identity", "shape")
AnyDivergence = Annotated[DivergenceSpec, DIVERGENCE_UNION]
Weight = Annotated[WeightSpec, WEIGHT_UNION]
WeightSpec.model_rebuild()


def divergence_spec(**data: Any) -> DivergenceSpec:
    """Return the divergence of `kind` (default: reverse KL) with its parameters. Raises ValueError if they are not
    valid for it."""
    made = DIVERGENCE_UNION.validate(data)
    assert isinstance(made, DivergenceSpec)
    return made


def _made_anew(weight: bool, data: dict[str, Any]) -> Spec:
    return (WEIGHT_UNION if weight else DIVERGENCE_UNION).validate(data)


def _common(model: type[Spec]) -> Mapping[str, Any]:
    """Return the fields of every kind."""
    base = WeightSpec if issubclass(model, WeightSpec) else DivergenceSpec
    return {n: f for n, f in base.model_fields.items() if n != "signal"}


__all__ = ["AnyDivergence", "DivergenceSpec", "Weight", "WeightSpec", "divergence_spec"]
