"""Run the whole path on generated images or your own: supernets, searches, retraining and a report.

Examples:
  python demo.py
  python demo.py --run runs/here --device cpu
  python demo.py --chapters configs/path/chapters-cifar10-cpu.toml --data DIR --run runs/cifar10
"""

from tools.chapters.run import ChaptersConfig, run_chapters
from tools.options.command import main

if __name__ == "__main__":
    main(ChaptersConfig, run_chapters, __doc__, bare=True)
