"""One reader per dataset, native format in, RawExample out."""
