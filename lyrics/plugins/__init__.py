"""The built-in components. Each family is found through the `lyrics` entry-point group, as a stranger's would be."""
