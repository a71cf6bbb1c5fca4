"""Layouts of weight files other than the released one."""
