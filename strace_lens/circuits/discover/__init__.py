"""Ways to find a circuit, one module a family; `methods.py` names them all."""
