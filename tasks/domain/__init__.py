"""Pure functions, records, ports and errors; no I/O, no clock, no scheduler."""
