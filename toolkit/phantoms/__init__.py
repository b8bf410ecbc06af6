"""Generated practice data: pictures whose answers can be seen in them, in the layouts of real data sets."""

from toolkit.phantoms.chest import write_chest as write_chest
