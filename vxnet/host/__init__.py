"""This machine's kernel, and the only place that touches it.

Read in this order: :mod:`netns` (being in another namespace), :mod:`netlink` (the transport), :mod:`links`,
:mod:`addresses` and :mod:`neighbours` (what is said over it), :mod:`nft`, then :mod:`datapath`, :mod:`gateway` and
:mod:`sandbox` (the three places of the picture in :mod:`vxnet.model.host`), and :mod:`kernel`, which joins them.
"""
