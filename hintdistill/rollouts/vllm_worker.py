"""An extension of vLLM's workers that packs kernels again if a reload has left the old weights in them.

On a CPU vLLM packs the weights of a linear layer into a kernel. `reload_weights` packs the weights of a checkpoint
again, but a tied output head is in none, and the kernel of the embedding is packed from a tensor that is released right
after (vLLM 0.32, `model_loader/reload/layerwise.py`). A server started with

    --worker-extension-cls hintdistill.rollouts.vllm_worker.PackedKernels

offers the one call that corrects this; `ServerGenerator.hand_over` uses it if the reload alone was not sufficient. On a
GPU nothing is packed. This was tested only with a tied head. This module does not import vLLM, whose worker class
inherits the method.
"""

from __future__ import annotations

from typing import Any


class PackedKernels:
    """Extend vLLM's worker class."""

    model_runner: Any

    def pack_again(self) -> list[str]:
        """Pack the kernels of all layers that still hold their unpacked weights, and return the layers' names.

        The other layers released their weights when they were packed, so a reload knows that it must pack them itself.
        """
        packed = []
        for name, layer in self.model_runner.get_model().named_modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                layer.quant_method.process_weights_after_loading(layer)
                packed.append(name)
        return packed
