"""The built-in components. Each family is found through the entry-point group `lyrics`, like third-party plugins."""
