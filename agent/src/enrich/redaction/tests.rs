use proptest::prelude::*;

use super::*;

mod habits;
mod looks;
mod readable;

/// Redacts words that are divided by `|`, so that they can contain spaces; a pipe of a shell is written `¦`.
fn redacted(redactor: &mut Redactor, line: &str) -> String {
    let mut arguments: Vec<String> = line.split('|').map(|word| word.replace('¦', "|")).collect();
    redactor.redact(&mut arguments);
    arguments.iter().map(|word| word.replace('|', "¦")).collect::<Vec<_>>().join("|")
}

/// `given` becomes `expected`, and each of `rules` has hidden so much of it, and no other rule anything.
fn check(own: &[&str], given: &str, expected: &str, rules: &[(&str, u64)]) {
    assert_eq!(problem(own, given, expected, rules), None);
}

/// What of that is not so.
fn problem(own: &[&str], given: &str, expected: &str, rules: &[(&str, u64)]) -> Option<String> {
    let own = own.iter().map(|rule| rule.parse().unwrap()).collect();
    let mut redactor = Redactor::new(own).unwrap();
    let became = redacted(&mut redactor, given);
    let once = redactor.redactions();
    let built_in = Rule::ALL.iter().map(|rule| (rule.word().to_owned(), once.by(*rule)));
    let of_ones_own =
        redactor.own_rules().iter().enumerate().map(|(at, rule)| (rule.to_string(), once.own(at)));
    let counted: Vec<_> = built_in.chain(of_ones_own).filter(|(_, count)| *count > 0).collect();
    let wanted: Vec<_> = rules.iter().map(|(rule, count)| ((*rule).to_owned(), *count)).collect();
    let again = redacted(&mut redactor, expected);
    // What is hidden already counts no more.
    let is_so = (became.as_str(), &counted, again.as_str(), redactor.redactions())
        == (expected, &wanted, expected, once);
    (!is_so).then(|| {
        format!("{given}\n became {became}\n  and then {again}\n  by {counted:?}, wanted {wanted:?}")
    })
}

/// Each hides its secrets, all of them by `rule`.
fn hidden_by(rule: &str, cases: &[(&str, &str)]) {
    let problem = |(given, expected): &(&str, &str)| {
        let secrets = expected.matches("[redacted]").count() as u64;
        problem(&[], given, expected, &[(rule, secrets)])
    };
    let problems: Vec<String> = cases.iter().filter_map(problem).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn rules_of_ones_own_are_added() {
    const OPTION: &str = "--corp-pin";
    for (own, given, expected) in [
        (OPTION, "app|--corp-pin|1234|-v", "app|--corp-pin|[redacted]|-v"),
        (OPTION, "app|--corp-pin=1234", "app|--corp-pin=[redacted]"),
        (OPTION, "app|-Corp-Pin|1234", "app|-Corp-Pin|[redacted]"),
        (OPTION, "sh|-c|app --corp-pin 1234 --x", "sh|-c|app --corp-pin [redacted] --x"),
        ("/pin", "app.exe|/PIN:1234|/x", "app.exe|/PIN:[redacted]|/x"),
        ("/pin", "app.exe|/pin|1234", "app.exe|/pin|[redacted]"),
        ("CORP_PIN=", "env|CORP_PIN=1234|app", "env|CORP_PIN=[redacted]|app"),
        ("CORP_PIN=", "app|--set|a=1;corp_pin=1234;b", "app|--set|a=1;corp_pin=[redacted];b"),
        ("CORP_PIN=", "app|{\"corp_pin\": \"12 34\"}", "app|{\"corp_pin\": \"[redacted]\"}"),
        ("corptool -k", "corptool|-k|1234", "corptool|-k|[redacted]"),
        ("corptool -k", "sudo|/opt/corp/bin/corptool|-k1234", "sudo|/opt/corp/bin/corptool|-k[redacted]"),
        ("CorpTool.exe  --key", "corptool.EXE|--key=1234", "corptool.EXE|--key=[redacted]"),
        ("corptool --key", "sh|-c|corptool --key 1234", "sh|-c|corptool --key [redacted]"),
    ] {
        let word = own.parse::<OwnRule>().unwrap().to_string();
        check(&[own], given, expected, &[(&word, 1)]);
    }
    for (own, line) in [
        (OPTION, "app|--corp-pins|1234|--corp|pin"),
        (OPTION, "app|--corp-pin|--quiet"),
        ("/pin", "cat|/pin-board|--pin"),
        ("CORP_PIN=", "app|CORP_PINS=1|--corp-pin"),
        ("corptool -k", "othertool|-k|1234"),
        ("corptool --key", "corptool|--keyring|x|-k"),
    ] {
        check(&[own], line, line, &[]);
    }
    // Those that are built in hold all the same.
    let both = [("secret-option", 1), (OPTION, 2)];
    check(
        &[OPTION, "CORP_PIN="],
        "app|--corp-pin|1|--password|2|--corp-pin=3",
        "app|--corp-pin|[redacted]|--password|[redacted]|--corp-pin=[redacted]",
        &both,
    );
}

#[test]
fn a_rule_that_cannot_be_meant_is_refused_with_the_way_out() {
    for (text, wanted) in [
        ("", "`--corp-pin`"),
        ("pin", "`CORP_PIN=`"),
        ("=", "is no rule"),
        ("--", "is no rule"),
        ("--corp pin", "is no rule"),
        ("a b c", "is no rule"),
        ("--pin!", "is no rule"),
        ("-k", "`corptool -k`"),
        ("/p", "write the program before it"),
        ("--corp-pin=1234", "a rule for `--corp-pin` has a value"),
        ("CORP_PIN=1234", "a rule for `CORP_PIN` has a value"),
        ("corptool -k=1234", "has a value"),
        ("/usr/bin/corptool -k", "the program's name alone"),
    ] {
        let error = text.parse::<OwnRule>().unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: no `{wanted}` in {error}");
        assert!(!error.contains("1234"), "what may be a secret is not repeated: {error}");
    }
    let long = format!("--{}", "x".repeat(200));
    assert!(long.parse::<OwnRule>().unwrap_err().to_string().contains("longer than 128 bytes"));
}

#[test]
fn rules_of_ones_own_are_bounded_and_counted_once() {
    let rules =
        |count: usize| (0..count).map(|at| format!("--pin{at}").parse().unwrap()).collect::<Vec<OwnRule>>();
    assert!(Redactor::new(rules(OWN_RULES_MAX)).is_ok());
    let error = Redactor::new(rules(OWN_RULES_MAX + 1)).unwrap_err().to_string();
    assert!(error.contains("33 rules") && error.contains("at most 32"), "{error}");
    let twice = [rules(OWN_RULES_MAX), rules(OWN_RULES_MAX)].concat();
    assert_eq!(Redactor::new(twice).unwrap().own_rules().len(), OWN_RULES_MAX);

    let mut redactor = Redactor::new(rules(OWN_RULES_MAX)).unwrap();
    redacted(&mut redactor, "app|--pin31|1|--password|2");
    let counts = redactor.redactions();
    assert_eq!((counts.own(31), counts.own(99), counts.total()), (1, 0, 2));
}

#[test]
fn rules_have_names_of_their_own() {
    let mut words: Vec<_> = Rule::ALL.iter().map(|rule| rule.word()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Rule::ALL.len());
    assert!(Rule::ALL.iter().enumerate().all(|(at, rule)| *rule as usize == at), "counted by place");
}

proptest! {
    #[test]
    fn any_words_can_be_redacted_twice(words in prop::collection::vec("[ -~ü]{0,40}", 0..6)) {
        let mut redactor = Redactor::default();
        let mut once = words.clone();
        redactor.redact(&mut once);
        let counts = redactor.redactions();
        let mut twice = once.clone();
        redactor.redact(&mut twice);
        prop_assert_eq!(&once.len(), &words.len());
        prop_assert_eq!(once, twice);
        prop_assert_eq!(redactor.redactions(), counts);
    }

    #[test]
    fn what_programs_are_given_can_be_redacted_twice(
        words in prop::collection::vec(
            "(curl|-u|mysql|-p|sh|-c|net|use|user|[\\\\]{2}s[\\\\]x|https://a:b@c|\"|'|echo x [|] sudo -S|--password|AKIA[A-Z]{16}|[a-z=:/@]{0,6}| ){1,4}",
            0..8,
        ),
        own in prop::collection::vec("(--[a-z]{1,3}|[a-z]{1,3}=|(curl|sh|net) -[a-z])", 0..3),
    ) {
        let own: Vec<OwnRule> = own.iter().filter_map(|rule| rule.parse().ok()).collect();
        let mut redactor = Redactor::new(own).unwrap();
        let mut once = words.clone();
        redactor.redact(&mut once);
        let mut twice = once.clone();
        redactor.redact(&mut twice);
        prop_assert_eq!(once, twice, "of {:?}", words);
    }

    #[test]
    fn a_named_secret_never_survives(secret in "Q[A-Za-z0-9]{7,30}Q", shape in 0_usize..12) {
        let line = match shape {
            0 => vec!["app".to_owned(), format!("--password={secret}")],
            1 => vec!["app".to_owned(), "--token".to_owned(), secret.clone()],
            2 => vec!["curl".to_owned(), format!("https://u:{secret}@h/")],
            3 => vec!["sh".to_owned(), "-c".to_owned(), format!("API_KEY={secret} app --x")],
            4 => vec!["mysql".to_owned(), format!("-p{secret}")],
            5 => vec!["sh".to_owned(), "-c".to_owned(), format!("curl -u \"u:{secret}\" h")],
            6 => vec!["curl".to_owned(), "-H".to_owned(), format!("Authorization: Bearer {secret}")],
            7 => vec!["sh".to_owned(), "-c".to_owned(), format!("echo {secret} | sudo -S ls")],
            8 => vec!["app".to_owned(), format!("{{\"Authorization\": \"Bearer {secret}\"}}")],
            9 => vec!["app".to_owned(), format!("password='a {secret}' x=1")],
            10 => vec!["net".to_owned(), "user".to_owned(), "jdoe".to_owned(), secret.clone()],
            _ => vec!["curl".to_owned(), format!("https://h/?token={secret}")],
        };
        let mut redacted = line.clone();
        Redactor::default().redact(&mut redacted);
        prop_assert!(!redacted.iter().any(|word| word.contains(&secret)), "{:?}", redacted);
    }
}
