"""Where images and labels come from, one file a form of data.

What is done with them afterwards is in :mod:`fedmed.data`.
"""
