"""qconvd as a service of systemd: its unit, and a drop-in for the folders of one config."""
