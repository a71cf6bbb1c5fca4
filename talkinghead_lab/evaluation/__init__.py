"""Any system's videos of a fixed list of clips, scored by one protocol and compared in one table."""
