"""The words everybody speaks: frozen records and the few errors. Imports nothing else of vxnet."""
