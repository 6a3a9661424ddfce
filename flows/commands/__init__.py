"""The commands of ``nearline``, by what a person wants; ``flows.cli`` puts them together."""
