"""The networks of the papers, and any traceable timm model, as chains."""
