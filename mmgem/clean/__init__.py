"""Noisy pairs made clean: what is wrong with a data set, which captions do not fit, and better ones.

:mod:`mmgem.clean.check` looks at photos and captions without a model, :mod:`mmgem.clean.scores` scores pairs
by one, :mod:`mmgem.clean.filter` leaves out what does not fit, :mod:`mmgem.clean.recaption` says it anew. All
read any data set through :mod:`mmgem.clean.pairs`.
"""
