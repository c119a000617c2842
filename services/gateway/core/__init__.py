"""What the gateway decides: rules, translations and document formats. Pure."""
