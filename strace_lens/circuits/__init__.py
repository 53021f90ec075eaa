"""The circuits wing: heads and MLPs as nodes, masks on their edges, ways to find a circuit."""
