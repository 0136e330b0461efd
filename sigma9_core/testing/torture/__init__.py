"""The crash torture: servers that are killed with `kill -9` again and again, on an exchange that lives on.

`points` are the places where a server dies by itself, `plugin` is what runs inside it, `server` starts and kills
it, `traffic` gives it work and keeps what it was promised, `checks` compares, `lives` puts it all together.
"""
