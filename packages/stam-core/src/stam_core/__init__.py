"""The update rules of STAM, STAMLite and STAC, written once over the Python array API."""
