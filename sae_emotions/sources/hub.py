"""Text data sets of the hub, or of a local folder in the hub's layout, streamed with `datasets`."""

from typing import Any

from sae_emotions.config import TextSource
from sae_emotions.errors import UserError
from sae_emotions.sources.quiet import quiet
from sae_emotions.sources.tables import Values, missing_column


def hub_values(source: TextSource) -> Values:
    """(row, value) of a streamed data set, in its own order.

    Raises `UserError`: the hub cannot be reached or has no such data set, subset or split; the column is not there.
    """
    rows = iter(_opened(source))
    number = 0
    while True:
        try:
            with quiet():
                row: dict[str, Any] = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the reader raises whatever its many back ends raise
            raise _refused(source, error) from None
        if source.column not in row:
            raise missing_column(source.column, row, source.source)
        if row[source.column] is not None:
            yield number, row[source.column]
        number += 1


def _opened(source: TextSource) -> Any:
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with quiet():
            return datasets.load_dataset(
                source.source, name=source.subset, split=source.split, revision=source.revision, streaming=True
            )
    except Exception as error:  # as above: from ValueError to a dozen network errors
        raise _refused(source, error) from None
    finally:
        if bars:
            datasets.enable_progress_bars()


def _refused(source: TextSource, error: Exception) -> UserError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    what = f"'{source.source}'" + (f", subset '{source.subset}'" if source.subset else "") + f", split '{source.split}'"
    return UserError(
        f"The data set {what} could not be read: the hub cannot be reached or has no such thing ({first})."
    )
