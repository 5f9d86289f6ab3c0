import pytest

from headscope.data.small_english import documents, vocabulary
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.folder import CheckpointFolder
from headscope.training.tokenizer import END_OF_TEXT, train_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "new"
    return train_tokenizer(documents(0, n=2000), out, vocab_size=1024, n_ctx=64)


@pytest.fixture(scope="module")
def tokenizer(directory):
    return CheckpointFolder(directory).tokenizer()


def test_every_word_of_the_language_is_one_token(tokenizer):
    assert len(tokenizer) <= 1024
    for word in vocabulary():
        assert len(tokenizer.encode(f" {word}")) == 1, word


@pytest.mark.parametrize("text", ["When Mary left.", " two  spaces\n\nand lines ", "naïve 漢字 🙂", "<b>&amp;</b>"])
def test_any_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_one_special_token_is_bos_eos_and_padding(tokenizer):
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.all_special_ids == [0]
    assert tokenizer.encode(END_OF_TEXT) == [0]
    assert tokenizer.encode("Mary")[0] != 0
    assert tokenizer.model_max_length == 64


def test_the_same_texts_give_the_same_files(directory, tmp_path):
    train_tokenizer(documents(0, n=2000), tmp_path, vocab_size=1024, n_ctx=64)
    names = {path.name for path in directory.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="vocab_size is 256"):
        train_tokenizer(["text"], tmp_path / "none", vocab_size=256, n_ctx=8)
    assert not (tmp_path / "none").exists()
