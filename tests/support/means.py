from headscope.analysis.recording.component_means import ComponentMeans, OutputSums
from headscope.analysis.storage.accumulator import Totals
from headscope.analysis.storage.run_folder import accumulate


def component_means(model, batches) -> ComponentMeans:
    """Mean outputs of all heads and MLPs over some batches."""
    outputs = OutputSums.of_all(model)
    return outputs.means(accumulate(batches, Totals(model, outputs.measure)).result())
