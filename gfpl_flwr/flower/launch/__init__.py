"""Starting runs from ``gfpl``: federations, a SuperLink of our own, its Control API. Not in the app's bundle."""
