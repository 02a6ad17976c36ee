"""Code shared by the tests: fakes, models and virtual networks. Importable as `support`."""
