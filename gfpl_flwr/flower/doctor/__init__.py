"""Whether a device or a server is fit to join: ``gfpl doctor`` and ``gfpl rehearse``. Not in the app's bundle.

``findings``  what a check says
``machine``   this machine: interpreter, packages, memory, disk, data, state
``server``    the other end: address, certificate, clock, key
``rehearsal`` one visit with the device's own data: time and memory
"""
