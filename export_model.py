"""Export a trained network for use elsewhere, and check that it is the same network there.

Examples:
  python export_model.py --run-of runs/best --formats state timm onnx torch_export --out exported
  python export_model.py --weights model.safetensors --formats onnx --out exported
  python export_model.py --run-of runs/blocks --which last --exits --out early_exits
"""

from retrain.export.config import ExportConfig
from tools.options.command import main


def run(config: ExportConfig) -> None:
    config.check_source()
    from retrain.export.run import export  # imports torch: only when there is work to do

    export(config)


if __name__ == "__main__":
    main(ExportConfig, run, __doc__)
