"""The scheduler: several devices run a graph together. It gives every node a device, cuts the graph, and copies values at the cuts."""
