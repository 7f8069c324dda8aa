use super::*;

fn options(words: &[&str]) -> TrackingOptions {
    let has = |word: &str| words.contains(&word);
    let prefixes = words.iter().filter_map(|word| word.strip_prefix('=')).map(|prefix| prefix.as_bytes().to_vec());
    TrackingOptions {
        broadcast: has("bcast"),
        opt_in: has("optin"),
        opt_out: has("optout"),
        noloop: has("noloop"),
        prefixes: prefixes.collect(),
    }
}

#[test]
fn options_that_do_not_fit_are_refused_with_the_texts_of_redis() {
    let reads = |opt| Some(Mode::Read(opt));
    let broadcast = |prefixes: &[&str]| Some(Mode::Broadcast(prefixes.iter().map(|p| p.as_bytes().to_vec()).collect()));
    for (words, current, text) in [
        (&["=a"][..], None, error::PREFIX_WITHOUT_BCAST),
        (&["bcast"], reads(Opt::Always), error::SWITCH_BCAST),
        (&[], broadcast(&[""]), error::SWITCH_BCAST),
        (&["bcast", "optin"], None, error::OPT_WITH_BCAST),
        (&["optin", "optout"], None, error::OPTIN_WITH_OPTOUT),
        (&["optin"], reads(Opt::Out), error::SWITCH_OPT),
        (
            &["bcast", "=ab", "=abc"],
            None,
            "ERR Prefix 'abc' overlaps with another provided prefix 'ab'. Prefixes for a single client must not overlap.",
        ),
        (
            &["bcast", "=a"],
            broadcast(&["ab"]),
            "ERR Prefix 'a' overlaps with an existing prefix 'ab'. Prefixes for a single client must not overlap.",
        ),
    ] {
        assert_eq!(options(words).check(current.as_ref()), Err(text.to_owned()), "{words:?} {current:?}");
    }
    for (words, current) in
        [(&[][..], None), (&["optin"], reads(Opt::Always)), (&["bcast", "=b"], broadcast(&["a"])), (&["bcast"], None)]
    {
        assert_eq!(options(words).check(current.as_ref()), Ok(()), "{words:?}");
    }
}

#[test]
fn a_client_has_a_bounded_number_of_prefixes() {
    let prefixes = (0..=PREFIXES_MAX).map(|number| format!("{number:04}").into_bytes()).collect();
    let too_many = TrackingOptions { broadcast: true, prefixes, ..TrackingOptions::default() };
    assert!(too_many.check(None).unwrap_err().contains("64 prefixes"));
}
