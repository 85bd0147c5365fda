"""The scheduling algorithm; nothing in here can be called from Python. See schedule.pyi."""
