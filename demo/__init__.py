"""An example app and a whole local stack on an embedded broker."""
