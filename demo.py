"""Run the whole path: supernets, a search, cuts, retraining, a report; on generated images or your own.

python demo.py
"""

from tools.chapters.run import ChaptersConfig, tell
from tools.options.command import main

if __name__ == "__main__":
    main(ChaptersConfig, tell, __doc__, bare=True)
