"""Run the whole path: supernets, a search, cuts, retraining, a report; on generated images or your own.

python demo.py
"""

from tools.chapters import ChaptersConfig, tell
from tools.command import main

if __name__ == "__main__":
    main(ChaptersConfig, tell, __doc__, bare=True)
