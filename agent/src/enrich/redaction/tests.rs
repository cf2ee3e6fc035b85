use proptest::prelude::*;

use super::*;

/// Words are divided by `|`, so that they can contain spaces.
fn check(given: &str, expected: &str) {
    let mut arguments: Vec<String> = given.split('|').map(str::to_owned).collect();
    redact(&mut arguments);
    assert_eq!(arguments.join("|"), expected, "of {given}");
    redact(&mut arguments);
    assert_eq!(arguments.join("|"), expected, "of {given}, a second time");
}

#[test]
fn secrets_are_hidden() {
    for (given, expected) in [
        // By the name of the option.
        ("app|--password=hunter2", "app|--password=[redacted]"),
        ("app|--password|hunter2|-v", "app|--password|[redacted]|-v"),
        ("app|--PASSWORD|hunter2", "app|--PASSWORD|[redacted]"),
        ("app|--db_password=a=b=c", "app|--db_password=[redacted]"),
        ("app|--token|-x9-leading-dash", "app|--token|[redacted]"),
        (
            "app|--secret|s|--api-key|k|--api_key=k",
            "app|--secret|[redacted]|--api-key|[redacted]|--api_key=[redacted]",
        ),
        ("gpg|--passphrase|correct horse", "gpg|--passphrase|[redacted]"),
        (
            "app|--client-secret=x|--access-token|y",
            "app|--client-secret=[redacted]|--access-token|[redacted]",
        ),
        ("app|--apiKey=abc|--authToken|abc", "app|--apiKey=[redacted]|--authToken|[redacted]"),
        ("keytool|-storepass|changeit|-alias|a", "keytool|-storepass|[redacted]|-alias|a"),
        (
            "java|-Dspring.datasource.password=x|-jar|a.jar",
            "java|-Dspring.datasource.password=[redacted]|-jar|a.jar",
        ),
        ("setup.exe|/password:x|/quiet", "setup.exe|/password:[redacted]|/quiet"),
        ("pwsh|-Password|x", "pwsh|-Password|[redacted]"),
        ("app|--password|--host|h", "app|--password|--host|h"),
        // By the name of the variable.
        ("env|PGPASSWORD=x|psql|-h|db", "env|PGPASSWORD=[redacted]|psql|-h|db"),
        ("docker|run|-e|MYSQL_ROOT_PASSWORD=x|mysql", "docker|run|-e|MYSQL_ROOT_PASSWORD=[redacted]|mysql"),
        ("env|GITHUB_TOKEN=x|APP_SECRET_VALUE=y", "env|GITHUB_TOKEN=[redacted]|APP_SECRET_VALUE=[redacted]"),
        ("env|OPENAI_API_KEY=x|STRIPE_APIKEY=y", "env|OPENAI_API_KEY=[redacted]|STRIPE_APIKEY=[redacted]"),
        ("env|AWS_SECRET_ACCESS_KEY=x", "env|AWS_SECRET_ACCESS_KEY=[redacted]"),
        (
            "aws|configure|set|aws_secret_access_key|wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "aws|configure|set|aws_secret_access_key|[redacted]",
        ),
        // By the habits of the program.
        ("mysql|-uroot|-phunter2|db", "mysql|-uroot|-p[redacted]|db"),
        ("/usr/bin/mysqldump|-pa:b|db", "/usr/bin/mysqldump|-p[redacted]|db"),
        ("mysql|-c|-phunter2", "mysql|-c|-p[redacted]"),
        ("sudo|mariadb|-p123456", "sudo|mariadb|-p[redacted]"),
        ("docker|exec|db|mysql|-psecret", "docker|exec|db|mysql|-p[redacted]"),
        ("curl|-u|jdoe:hunter2|https://h/", "curl|-u|jdoe:[redacted]|https://h/"),
        ("curl|-ujdoe:hunter2", "curl|-ujdoe:[redacted]"),
        ("curl.exe|--user|jdoe:a:b", "curl.exe|--user|jdoe:[redacted]"),
        ("curl|--user=jdoe:a|--proxy-user|p:q", "curl|--user=jdoe:[redacted]|--proxy-user|p:[redacted]"),
        ("wget|--user|jdoe:x|--http-password=y", "wget|--user|jdoe:[redacted]|--http-password=[redacted]"),
        ("curl|-H|Authorization: Bearer abc.def", "curl|-H|Authorization: Bearer [redacted]"),
        ("curl|-HAuthorization: Basic dTpw", "curl|-HAuthorization: Basic [redacted]"),
        ("curl|--header|authorization: abc", "curl|--header|authorization: [redacted]"),
        (
            "curl|-H|X-Api-Key: abc|-H|PRIVATE-TOKEN: d",
            "curl|-H|X-Api-Key: [redacted]|-H|PRIVATE-TOKEN: [redacted]",
        ),
        ("curl|-b|session=abc", "curl|-b|[redacted]"),
        ("sshpass|-p|x|ssh|h", "sshpass|-p|[redacted]|ssh|h"),
        ("ldapsearch|-D|cn=a|-w|x", "ldapsearch|-D|cn=a|-w|[redacted]"),
        ("redis-cli|-a|x|ping", "redis-cli|-a|[redacted]|ping"),
        ("docker|login|-u|me|-p|x|registry", "docker|login|-u|me|-p|[redacted]|registry"),
        ("smbclient|-U|dom/jdoe%x", "smbclient|-U|dom/jdoe%[redacted]"),
        ("7z|x|-psecret|a.7z", "7z|x|-p[redacted]|a.7z"),
        ("openssl|rsa|-passin|pass:x", "openssl|rsa|-passin|pass:[redacted]"),
        // In addresses, fields and headers.
        ("git|clone|https://jdoe:hunter2@h/r.git", "git|clone|https://jdoe:[redacted]@h/r.git"),
        ("psql|postgres://u:p@ss@h:5432/db?x=1", "psql|postgres://u:[redacted]@h:5432/db?x=1"),
        ("app|amqp://a:b@h,amqp://c:d@i", "app|amqp://a:[redacted]@h,amqp://c:[redacted]@i"),
        ("curl|https://h/?a=1&access_token=abc&b=2", "curl|https://h/?a=1&access_token=[redacted]&b=2"),
        (
            "curl|-d|{\"user\": \"u\", \"password\": \"p\"}",
            "curl|-d|{\"user\": \"u\", \"password\": \"[redacted]\"}",
        ),
        ("curl|-d|user=u&password=p", "curl|-d|user=u&password=[redacted]"),
        (
            "sql|Server=h;User Id=u;Password=p;Pwd=q;",
            "sql|Server=h;User Id=u;Password=[redacted];Pwd=[redacted];",
        ),
        ("azcopy|https://b/c?sv=1&sig=abc", "azcopy|https://b/c?sv=1&sig=[redacted]"),
        // By their looks.
        ("app|AKIAIOSFODNN7EXAMPLE", "app|[redacted]"),
        ("app|key:AKIAIOSFODNN7EXAMPLE,x", "app|key:[redacted],x"),
        (
            "git|clone|https://ghp_0123456789abcdefghijABCDEFGHIJ012345@github.com/r",
            "git|clone|https://[redacted]@github.com/r",
        ),
        ("app|say Bearer xyz", "app|say Bearer [redacted]"),
        // Command lines within command lines.
        ("sh|-c|mysql -u root -phunter2 db < x", "sh|-c|mysql -u root -p[redacted] db < x"),
        ("sh|-c|PGPASSWORD=x  psql", "sh|-c|PGPASSWORD=[redacted]  psql"),
        ("bash|-c|cd /x && curl -u 'a:b c' h", "bash|-c|cd /x && curl -u 'a:[redacted]' h"),
        (
            "sh|-c|curl -H \"Authorization: Bearer x\" h",
            "sh|-c|curl -H \"Authorization: Bearer [redacted]\" h",
        ),
        ("sh|-c|app --password hunter2 --quiet", "sh|-c|app --password [redacted] --quiet"),
        ("ssh|h|sh -c 'app --token x'", "ssh|h|sh -c 'app --token [redacted]'"),
    ] {
        check(given, expected);
    }
}

#[test]
fn everything_else_is_left_as_it_is() {
    for line in [
        "",
        "ssh|-p|22|jdoe@h",
        "ssh|-i|/home/jdoe/.ssh/id_ed25519|-p2222|h",
        "docker|run|-p|80:80|-p8080:80|nginx",
        "docker|run|--name|mysql|-p3306:3306|mysql:8",
        "docker|run|--user|1000:1000|alpine",
        "server|-p|8080|--port=8080",
        "mysql|-u|root|-p|db",
        "mysql|-P|3306",
        "cp|-p|a|b",
        "mkdir|-p|/a/b",
        "curl|https://example.com/a:b@c/d?x=1&page=2",
        "curl|-u|jdoe|-b|cookies.txt|-H|Accept: text/html|https://h:8443/",
        "git|clone|ssh://git@github.com/r.git",
        "git|clone|git@github.com:org/repo.git",
        "app|--password-file|/run/secrets/db|--token-path=/x",
        "app|--no-password|x|--ask-password|y",
        "docker|login|--password-stdin|registry",
        "vault|--tokenizer=simple|--max-tokens=5|--pass-through|x",
        "env|PWD=/home/jdoe|OLDPWD=/|PATH=/bin|KEY=value|TOKEN_FILE=/x",
        "ssh-keygen|-t|ed25519|-C|jdoe@laptop",
        "sh|-c|for i in 1 2; do echo \"$i\" >> /tmp/x; done",
        "cat|/etc/passwd|/home/jdoe/password.txt|secret",
        "find|/|-name|*token*",
        "rustc|--edition=2024|-C|opt-level=3|--cfg|feature=\"std\"",
        "C:\\Program Files\\App\\app.exe|/quiet|/log:C:\\x.log",
        "chrome|--type=renderer|--field-trial-handle=1,i,2,3|--lang=en",
        "ldapsearch|-x|-s|base|-W",
        "zip|-r|a.zip|b",
        "task-runner|sk-short|eyJ",
        "größe|--größe=1|日本 語 --x",
    ] {
        check(line, line);
    }
}

proptest! {
    #[test]
    fn any_words_can_be_redacted_twice(words in prop::collection::vec("[ -~ü]{0,40}", 0..6)) {
        let mut once = words.clone();
        redact(&mut once);
        let mut twice = once.clone();
        redact(&mut twice);
        prop_assert_eq!(&once.len(), &words.len());
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn a_named_secret_never_survives(secret in "Q[A-Za-z0-9]{7,30}Q", shape in 0_usize..8) {
        let line = match shape {
            0 => vec!["app".to_owned(), format!("--password={secret}")],
            1 => vec!["app".to_owned(), "--token".to_owned(), secret.clone()],
            2 => vec!["curl".to_owned(), format!("https://u:{secret}@h/")],
            3 => vec!["sh".to_owned(), "-c".to_owned(), format!("API_KEY={secret} app --x")],
            4 => vec!["mysql".to_owned(), format!("-p{secret}")],
            5 => vec!["sh".to_owned(), "-c".to_owned(), format!("curl -u \"u:{secret}\" h")],
            6 => vec!["curl".to_owned(), "-H".to_owned(), format!("Authorization: Bearer {secret}")],
            _ => vec!["curl".to_owned(), format!("https://h/?token={secret}")],
        };
        let mut redacted = line.clone();
        redact(&mut redacted);
        prop_assert!(!redacted.iter().any(|word| word.contains(&secret)), "{:?}", redacted);
    }
}
