def check(p):
    pass


def draw(*a):
    pass
