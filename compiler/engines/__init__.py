"""Who runs the units. Every engine calls the same pure `compiler.unit.run_unit`; none changes a byte."""
