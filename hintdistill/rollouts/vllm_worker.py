"""An extension of vLLM's workers: kernels that a reload of weights has left with the old ones are made again.

On a CPU vLLM packs the weights of a linear layer into a kernel. `reload_weights` packs again what a checkpoint holds, but a
tied output head is in none, and the kernel of the embedding is packed from a tensor that is given away right after (vLLM
0.32, `model_loader/reload/layerwise.py`). A server started with

    --worker-extension-cls hintdistill.rollouts.vllm_worker.PackedKernels

offers the one call that sets this right; `ServerGenerator.hand_over` asks for it where the reload alone was not enough. On a
GPU nothing is packed. Tried with a tied head only. Nothing here imports vLLM: its worker class takes the method over.
"""

from __future__ import annotations

from typing import Any


class PackedKernels:
    """What is added to vLLM's worker class."""

    model_runner: Any

    def pack_again(self) -> list[str]:
        """Pack the kernels of all layers that still hold the weights they were packed from; returns the layers' names.

        The others gave their weights away when they were packed, which is how a reload knows to pack them itself.
        """
        packed = []
        for name, layer in self.model_runner.get_model().named_modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                layer.quant_method.process_weights_after_loading(layer)
                packed.append(name)
        return packed
