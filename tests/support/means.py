from headscope.analysis.recording.component_means import ComponentMeans, MeansAccumulator
from headscope.analysis.storage.run_folder import accumulate


def component_means(model, blocks) -> ComponentMeans:
    """Mean outputs of all heads and MLPs over some blocks."""
    return accumulate(blocks, lambda state: MeansAccumulator.of_all(state or {}, model)).result()
