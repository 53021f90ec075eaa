"""Many prompts: read them, sweep them into a folder of results, analyse what the folder holds."""
