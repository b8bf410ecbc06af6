"""Generated practice data: pictures whose answers can be seen in them, in the layouts of real data sets."""

from toolkit.synthetic.chest import write_chest as write_chest
from toolkit.tasks.lesion.synthetic import write_ham10000 as write_ham10000
from toolkit.tasks.lesion.synthetic import write_isic as write_isic
from toolkit.tasks.steps.synthetic import write_steps as write_steps
from toolkit.tasks.vqa.synthetic import write_chest_vqa as write_chest_vqa
