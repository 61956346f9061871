"""The daemon's HTTP port: closed unless `web.listen` opens it."""
