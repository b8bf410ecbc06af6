"""Generated practice data: pictures whose answers can be seen in them, in the layouts of real data sets."""

from toolkit.phantoms.chest import write_chest as write_chest
from toolkit.phantoms.chest_vqa import write_chest_vqa as write_chest_vqa
from toolkit.phantoms.lesion_sets import write_ham10000 as write_ham10000
from toolkit.phantoms.lesion_sets import write_isic as write_isic
from toolkit.phantoms.steps_sets import write_steps as write_steps
