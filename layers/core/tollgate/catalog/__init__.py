"""Plans and models as data: the files, and the only door to them, `tollgate.catalog.loader`."""
