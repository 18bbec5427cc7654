"""Varied lines for tests of all tokenizers.

They cover more than ten languages, with as much Chinese as all others together, code, and random insertions of text
that is difficult for tokenizers.
"""

import random
import unicodedata

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? Yes: 3.14 (about)!",
    "Der Fluß überquert größere Straßen; ÄÖÜ äöü – „Anführung“ ẞ.",
    "Ça déjà vu, l'été à Nîmes: œuvre, naïve, ÉCOLE.",
    "Türkçe: İstanbul'da ılık bir gün, Iğdır ve İzmir.",
    "Ὀδυσσεύς καὶ ΣΊΣΥΦΟΣ· ο λόγος ΤΟΥΣ.",
    "Съешь же ещё этих мягких французских булок, Йод.",
    "هذه جملة عربية قصيرة، أليس كذلك؟ مُحَمَّد",
    "זוהי שָׁלוֹם עולם.",
    "यह हिन्दी का एक छोटा वाक्य है। क्या यह ठीक है?",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำทำให้คำหนึ่งคำยาวมากจนเกินหนึ่งร้อยไบต์",
    "한국어 문장은 음절로 쓰입니다. 훈민정음",
    "日本語の文章です。カタカナとひらがな、ガギグと漢字。",
    "这是一个中文句子,没有空格!真的吗?「引号」",
    "Tiếng Việt có rất nhiều dấu: ườ ễ ợ ặ Đ đ.",
    "Emoji 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 🇩🇪 and ™ © № ½ ﬁne Ⅷ x² ℃.",
]
_CHINESE = [
    "自然语言处理的第一步是分词:他说「今天天气真好!」我们去公园散步吧……",
    "臺灣的繁體中文,標點符號「」『』、;:?!——與全形數字123,還有注音ㄅㄆㄇ。",
    "香港嘅粵語口語文:佢哋喺嗰度做咩㗎?唔該晒!",
    "春眠不觉晓,处处闻啼鸟。夜来风雨声,花落知多少。",
    "學而時習之,不亦說乎?有朋自遠方來,不亦樂乎?",
    "中英mixed混排text,数字2024年3月15日,价格¥1,234.56元(约$170)",
    "人工智能和机器学习的模型在中文的文本上训练,中国人说中文,中文的字很多。",
    "他们的问题是什么?我们的问题不是这个问题,是那个问题。 第一、第二、第三。",
    "生僻字:𠮷𠀀䶮㐂龘𪚥𫝀𬺰,部首⼀⼁⺮,兼容字豈更丽,异体字葛󠄀辻󠄁。",
    "北京市海淀区中关村大街27号,邮编100080,电话010-6275-1234。",
    "汉语拼音:nǐ hǎo,Běijīng,lǜsè;〈书名〉《红楼梦》〖注〗〇九年…～·",
    "全角空格\u3000括号(一)【方头】{花}%#&*+-=@",
]
# Real text has full-width punctuation, and occasionally full-width letters and digits.
_FULL_WIDTH = {ord(c): ord(c) + 0xFEE0 for c in ",!?:;()"}
_ALL_FULL_WIDTH = {c: c + 0xFEE0 for c in range(0x21, 0x7F)}
CHINESE = [
    *_CHINESE,
    *(text.translate(_FULL_WIDTH) for text in _CHINESE),
    *(text.translate(_ALL_FULL_WIDTH) for text in _CHINESE if text.translate(_ALL_FULL_WIDTH) != text),
]
CODE = [
    "def f(x: int) -> str:\n\treturn f'{x!r:>{10}}'  # {} [] <- ->\n",
    "for (int i = 0; i < n; ++i) {\n    a[i] += b[i] << 2;\n\n    }\r\n  /* TODO */ #include <vector>",
    "SELECT * FROM t WHERE a >= 3 AND name LIKE '%x_%';   -- comment\n\n\n",
    "Hello!!! ... ------ ====== ______ \t\t  hahahahaha   aaa  www.example.com/?q=1&r=%20",
]
MORE = [
    "I'm sure they'll say we've won; it'd be what you're after. I'M SURE THEY'LL. o'clock 'tis 's",
    "In 1984, 3,000 people paid 12345678.90 --- ²³½Ⅷ ٣٤٥ १२३ ...!!!\n",
    "9,99, not ``10,5''; 12,345,678, and ²,³, too. 5,",
    "¡Hola! ¿Qué tal? El niño comió piñas; se escribió así.",
    "日本の文章、カタカナ。한국의 문장. ข้อความภาษาไทย नमस्ते दुनिया! Привет, мир! 中文",
    "ÉCOLE ΣΊΣΥΦΟΣ ΑΣ. ΑΣ, İSTANBUL ǅ ﬃ ẞ \u1e9b\u0323 \u03d4 \u00a8 \u2126 \u212b",
]
# Special tokens of every kind, as text.
SPECIALS = [
    *("[MASK]", "[UNK]", "[CLS]", "</s>", "<s>", "<unk>", "<pad>", "<mask>", "<eop>", "<sep>", "<0x41>"),
    *("<extra_id_0>", "<extra_id_99>", "<|endoftext|>", "<|im_start|>"),
]
SPACES = [
    *("  ", "   ", " \n", "\n ", "\n\n", " \n \n x", "\t", "\v", " \r\n", "\r", "\u3000", "\u00a0 ", " \u2003a"),
    *("\x1c", "\u2581", " \u2581 "),
]
INSERTS = [
    *("\u200d", "\u200e", "\u200f", "\u202b", "\u202c", "\u2066", "\ufeff", "\u00ad", "\ufe0f"),
    *("\0", "\x01", "\x0b", "\x0c", "\x1f", "\x7f", "\x85", "\x9f", "\t", "\n", "\r\n", "\u00a0", "\u3000"),
    *("\u2028", "\u2029", "\u1680", "\u2009", "\ufffd", "\ue000", "\U000f0000", "\U0010fff9", "\U0010fffd"),
    *("\u0301", "\u0308\u0323", "\u0323\u0308", "\u3099", "\u0b56", ",", "!", "?", "～", "ＡＢｃ", "：", "、"),
    *(
        *"\uff0c\uff01\uff1f\uff1a\uff1b\uff08\uff09\uff10\uff21\uff41\uffe5",
        "\uff0c\u201d",
        "\u2014\u2014",
        "\u2026\u2026",
    ),
    *("##ing", "##", "[unused1]", "'", "``", "''", "$", "^", "|", "~", "_", "«", "1,", "\u0660,", "…", "ー", "。"),
    *("\U00020000", "\U0001f600", "ǅ", "ŉ", "ΐ", "ß", "Σ", "ς", "ΑΣ", "ﬃ", "가", "\u1100\u1161", "K", "Å"),
    *("a" * 99, "b" * 100, "c" * 101, "é" * 100, "e\u0301" * 100, "ж" * 101, "ก" * 100, "ก" * 101, "x" * 500),
    *("𐐀" * 100, "𐐀" * 101, "가" * 33, "가" * 34, "字" * 120, "d" * 60 + "-" + "d" * 60),
    *("'s", "'S", "'\u017f", "'ll", "'LL", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "\U0010ffff"),
]
PLACES = [*INSERTS, *SPECIALS, *SPACES, *SPACES]
LONG = [
    *("a" * 5000, "字" * 5000, "中文" * 2500, "ха" * 2500, "👩‍👩‍👧" * 1000, " " * 5000, "1" * 5000),
    *("\n" * 3000, "!?" * 2500),
]


def lines(count: int, seed: int = 7) -> list[str]:
    """Returns `count` lines: the samples above unchanged, and mixtures of them."""
    rng = random.Random(seed)
    others = [*SENTENCES, *CODE, *MORE]
    result = ["", " ", "  ", "\0", "\n", *LONG, *others, *CHINESE, *PLACES]
    while len(result) < count:
        some = rng.choice((others, CHINESE, others + CHINESE))
        text = rng.choice(("", " ", "  ")).join(rng.sample(some, rng.randint(1, 3)))
        start = rng.randrange(len(text))
        text = text[start : start + rng.randint(1, 150)]
        for _ in range(rng.choice((0, 1, 1, 3, 6))):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(PLACES) + text[at:]
        result.append(rng.choice((text, text, text, text.upper(), unicodedata.normalize("NFD", text))))
    return result
