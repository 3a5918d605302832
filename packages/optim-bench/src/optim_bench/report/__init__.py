"""What a reader gets: pages and tables, and the two costs that stand in them, time and memory.

This loads nothing: the processes that measure import their own part alone, after they are pinned.
"""
