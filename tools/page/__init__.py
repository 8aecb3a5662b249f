"""Reports as single HTML files, and how their figures look."""
