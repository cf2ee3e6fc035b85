//! Secrets that are told by what is written before or around them, or by their own looks.

use super::{check, hidden_by};

#[test]
fn by_the_name_of_the_option() {
    hidden_by(
        "secret-option",
        &[
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
            ("jarsigner|-keypass|x|a.jar|key", "jarsigner|-keypass|[redacted]|a.jar|key"),
            (
                "java|-Dspring.datasource.password=x|-jar|a.jar",
                "java|-Dspring.datasource.password=[redacted]|-jar|a.jar",
            ),
            (
                "java|-Djavax.net.ssl.keyStorePassword=x|A",
                "java|-Djavax.net.ssl.keyStorePassword=[redacted]|A",
            ),
            ("gradle|-PsigningPassword=x", "gradle|-PsigningPassword=[redacted]"),
            ("setup.exe|/password:x|/quiet", "setup.exe|/password:[redacted]|/quiet"),
            ("cmdkey|/add:srv|/user:corp\\jdoe|/pass:x", "cmdkey|/add:srv|/user:corp\\jdoe|/pass:[redacted]"),
            ("cmdkey|/generic:srv|/user:jdoe|/pass:x y", "cmdkey|/generic:srv|/user:jdoe|/pass:[redacted]"),
            ("wmic|/node:srv|/user:jdoe|/password:x|os", "wmic|/node:srv|/user:jdoe|/password:[redacted]|os"),
            (
                "netdom|join|h|/passwordd:x|/passwordo:y",
                "netdom|join|h|/passwordd:[redacted]|/passwordo:[redacted]",
            ),
            ("appcmd|set|/processModel.password:x", "appcmd|set|/processModel.password:[redacted]"),
            ("app.exe|-Password:x|-Token|y", "app.exe|-Password:[redacted]|-Token|[redacted]"),
            ("dsadd|user|cn=a|-pwd|x", "dsadd|user|cn=a|-pwd|[redacted]"),
            (
                "wget|--password=x|--http-password=y|https://h/",
                "wget|--password=[redacted]|--http-password=[redacted]|https://h/",
            ),
            (
                "wget|--ftp-password|x|--proxy-password=y",
                "wget|--ftp-password|[redacted]|--proxy-password=[redacted]",
            ),
            (
                "curl|--pass|x|--proxy-pass|y|--tlspassword|z",
                "curl|--pass|[redacted]|--proxy-pass|[redacted]|--tlspassword|[redacted]",
            ),
            ("mysql|--password=x|db", "mysql|--password=[redacted]|db"),
            ("redis-cli|--pass|x|ping", "redis-cli|--pass|[redacted]|ping"),
            (
                "rclone|copy|--sftp-pass|x|--s3-secret-access-key|y",
                "rclone|copy|--sftp-pass|[redacted]|--s3-secret-access-key|[redacted]",
            ),
            ("docker|login|--username|u|--password|x|r", "docker|login|--username|u|--password|[redacted]|r"),
            ("kubectl|--token|x|get|pods", "kubectl|--token|[redacted]|get|pods"),
            (
                "kubectl|config|set-credentials|u|--password=x",
                "kubectl|config|set-credentials|u|--password=[redacted]",
            ),
            (
                "kubectl|create|secret|docker-registry|r|--docker-password=x",
                "kubectl|create|secret|docker-registry|r|--docker-password=[redacted]",
            ),
            ("helm|repo|add|r|https://h|--password|x", "helm|repo|add|r|https://h|--password|[redacted]"),
            ("vault|login|-token=x", "vault|login|-token=[redacted]"),
            ("consul|kv|get|-token|x|key", "consul|kv|get|-token|[redacted]|key"),
            (
                "az|login|--service-principal|-u|u|--password|x",
                "az|login|--service-principal|-u|u|--password|[redacted]",
            ),
            (
                "az|storage|blob|list|--account-key|x|--sas-token|y",
                "az|storage|blob|list|--account-key|[redacted]|--sas-token|[redacted]",
            ),
            ("az|vm|create|--admin-password|x", "az|vm|create|--admin-password|[redacted]"),
            (
                "gcloud|sql|users|set-password|u|--password=x",
                "gcloud|sql|users|set-password|u|--password=[redacted]",
            ),
            (
                "aws|secretsmanager|create-secret|--secret-string|x",
                "aws|secretsmanager|create-secret|--secret-string|[redacted]",
            ),
            (
                "aws|rds|create-db-instance|--master-user-password|x",
                "aws|rds|create-db-instance|--master-user-password|[redacted]",
            ),
            (
                "aws|configure|set|aws_secret_access_key|a+b/c",
                "aws|configure|set|aws_secret_access_key|[redacted]",
            ),
            (
                "aws|configure|set|profile.a.aws_session_token|x",
                "aws|configure|set|profile.a.aws_session_token|[redacted]",
            ),
            ("s3cmd|--secret_key=x|ls", "s3cmd|--secret_key=[redacted]|ls"),
            ("nuget|push|a.nupkg|-ApiKey|x", "nuget|push|a.nupkg|-ApiKey|[redacted]"),
            ("cargo|publish|--token|x", "cargo|publish|--token|[redacted]"),
            ("clickhouse-client|--password|x", "clickhouse-client|--password|[redacted]"),
            ("putty|-load|a|-pw|x", "putty|-load|a|-pw|[redacted]"),
            ("plink.exe|-l|jdoe|-pw|x|h", "plink.exe|-l|jdoe|-pw|[redacted]|h"),
            ("pdftotext|-upw|x|-opw|y|a.pdf", "pdftotext|-upw|[redacted]|-opw|[redacted]|a.pdf"),
            ("certbot|--dns-credentials|u:p", "certbot|--dns-credentials|[redacted]"),
            ("deploy|--private-key|abcdef", "deploy|--private-key|[redacted]"),
            ("sysadminctl|-addUser|jdoe|-password|x", "sysadminctl|-addUser|jdoe|-password|[redacted]"),
            ("x11vnc|-passwd|x", "x11vnc|-passwd|[redacted]"),
            (
                "hashicorp|--license-key=x|--app-key|y",
                "hashicorp|--license-key=[redacted]|--app-key|[redacted]",
            ),
            ("sh|-c|app --password hunter2 --quiet", "sh|-c|app --password [redacted] --quiet"),
            ("sh|-c|app --password 'hunter 2' --quiet", "sh|-c|app --password '[redacted]' --quiet"),
            ("ssh|h|sh -c 'app --token x'", "ssh|h|sh -c 'app --token [redacted]'"),
        ],
    );
}

#[test]
fn by_the_name_of_the_variable() {
    hidden_by(
        "secret-variable",
        &[
            ("env|PGPASSWORD=x|psql|-h|db", "env|PGPASSWORD=[redacted]|psql|-h|db"),
            (
                "docker|run|-e|MYSQL_ROOT_PASSWORD=x|mysql",
                "docker|run|-e|MYSQL_ROOT_PASSWORD=[redacted]|mysql",
            ),
            ("docker|build|--build-arg|NPM_TOKEN=x|.", "docker|build|--build-arg|NPM_TOKEN=[redacted]|."),
            (
                "env|GITHUB_TOKEN=x|APP_SECRET_VALUE=y",
                "env|GITHUB_TOKEN=[redacted]|APP_SECRET_VALUE=[redacted]",
            ),
            (
                "env|OPENAI_API_KEY=x|STRIPE_APIKEY=y",
                "env|OPENAI_API_KEY=[redacted]|STRIPE_APIKEY=[redacted]",
            ),
            (
                "env|AWS_SECRET_ACCESS_KEY=x|AWS_SESSION_TOKEN=y",
                "env|AWS_SECRET_ACCESS_KEY=[redacted]|AWS_SESSION_TOKEN=[redacted]",
            ),
            ("env|RESTIC_PASSWORD=x|restic|backup|/etc", "env|RESTIC_PASSWORD=[redacted]|restic|backup|/etc"),
            (
                "env|BORG_PASSPHRASE=x|SSHPASS=y|MYSQL_PWD=z",
                "env|BORG_PASSPHRASE=[redacted]|SSHPASS=[redacted]|MYSQL_PWD=[redacted]",
            ),
            (
                "env|RCLONE_CONFIG_R_PASS=x|SNOWSQL_PWD=y",
                "env|RCLONE_CONFIG_R_PASS=[redacted]|SNOWSQL_PWD=[redacted]",
            ),
            (
                "env|VAULT_TOKEN=x|DJANGO_SECRET_KEY=y",
                "env|VAULT_TOKEN=[redacted]|DJANGO_SECRET_KEY=[redacted]",
            ),
            (
                "env|TF_VAR_db_password=x|DD_APP_KEY=y",
                "env|TF_VAR_db_password=[redacted]|DD_APP_KEY=[redacted]",
            ),
            (
                "ansible-playbook|-e|ansible_become_pass=x",
                "ansible-playbook|-e|ansible_become_pass=[redacted]",
            ),
            ("terraform|apply|-var|db_password=a,b", "terraform|apply|-var|db_password=[redacted]"),
            (
                "vault|write|auth/userpass/login/jdoe|password=x",
                "vault|write|auth/userpass/login/jdoe|password=[redacted]",
            ),
            ("msiexec|/i|a.msi|DB_PASSWORD=x", "msiexec|/i|a.msi|DB_PASSWORD=[redacted]"),
            ("curl|-F|token=abc|h", "curl|-F|token=[redacted]|h"),
            ("psql|host=h password='p q' user=u", "psql|host=h password=[redacted] user=u"),
            ("sh|-c|PGPASSWORD=x  psql", "sh|-c|PGPASSWORD=[redacted]  psql"),
            (
                "bash|-lc|export GH_TOKEN='x y' && gh pr list",
                "bash|-lc|export GH_TOKEN=[redacted] && gh pr list",
            ),
            (
                "vault|write|auth/approle/login|role_id=r|secret_id=x",
                "vault|write|auth/approle/login|role_id=r|secret_id=[redacted]",
            ),
            ("env|ENABLE_PASSWORD=x|RESET_TOKEN=y", "env|ENABLE_PASSWORD=[redacted]|RESET_TOKEN=[redacted]"),
        ],
    );
}

#[test]
fn in_headers() {
    hidden_by(
        "header",
        &[
            ("curl|-H|Authorization: Bearer abc.def", "curl|-H|Authorization: Bearer [redacted]"),
            ("curl|-HAuthorization: Basic dTpw", "curl|-HAuthorization: Basic [redacted]"),
            ("curl|--header|authorization: abc", "curl|--header|authorization: [redacted]"),
            (
                "curl|-H|X-Api-Key: abc|-H|PRIVATE-TOKEN: d",
                "curl|-H|X-Api-Key: [redacted]|-H|PRIVATE-TOKEN: [redacted]",
            ),
            ("curl|-H|Cookie: a=b; c=d", "curl|-H|Cookie: [redacted]"),
            ("curl|-sH|Ocp-Apim-Subscription-Key: x|h", "curl|-sH|Ocp-Apim-Subscription-Key: [redacted]|h"),
            ("wget|--header=Cookie: a=b|h", "wget|--header=Cookie: [redacted]|h"),
            ("grpcurl|-H|x-auth-token: abc|h", "grpcurl|-H|x-auth-token: [redacted]|h"),
            (
                "http|h|Authorization:Bearer x|X-API-Key:y",
                "http|h|Authorization:Bearer [redacted]|X-API-Key:[redacted]",
            ),
            ("gh|api|-H|Authorization: token x|/u", "gh|api|-H|Authorization: token [redacted]|/u"),
            (
                "git|-c|http.extraHeader=Authorization: Basic dTpw|pull",
                "git|-c|http.extraHeader=Authorization: Basic [redacted]|pull",
            ),
            (
                "git|-c|http.extraheader=AUTHORIZATION: bearer x|pull",
                "git|-c|http.extraheader=AUTHORIZATION: bearer [redacted]|pull",
            ),
            ("app|say Bearer xyz", "app|say Bearer [redacted]"),
            ("app|{\"Authorization\": \"Bearer x.y\"}", "app|{\"Authorization\": \"Bearer [redacted]\"}"),
            (
                "pwsh|-c|irm h -Headers @{Authorization=\"Bearer x\"}",
                "pwsh|-c|irm h -Headers @{Authorization=\"Bearer [redacted]\"}",
            ),
            (
                "sh|-c|curl -H \"Authorization: Bearer x\" h",
                "sh|-c|curl -H \"Authorization: Bearer [redacted]\" h",
            ),
        ],
    );
}

#[test]
fn in_addresses() {
    hidden_by(
        "url-password",
        &[
            ("git|clone|https://jdoe:hunter2@h/r.git", "git|clone|https://jdoe:[redacted]@h/r.git"),
            (
                "git|remote|set-url|origin|https://oauth2:x@h/r",
                "git|remote|set-url|origin|https://oauth2:[redacted]@h/r",
            ),
            (
                "git|clone|https://x-access-token:x@github.com/r",
                "git|clone|https://x-access-token:[redacted]@github.com/r",
            ),
            (
                "git|clone|https://0123456789abcdef0123456789abcdef01234567@github.com/r",
                "git|clone|https://[redacted]@github.com/r",
            ),
            ("psql|postgres://u:p@ss@h:5432/db?x=1", "psql|postgres://u:[redacted]@h:5432/db?x=1"),
            ("psql|postgres://u:p/a#ss@h/db", "psql|postgres://u:[redacted]@h/db"),
            ("app|amqp://a:b@h,amqp://c:d@i", "app|amqp://a:[redacted]@h,amqp://c:[redacted]@i"),
            ("mongosh|mongodb+srv://u:p@h/db", "mongosh|mongodb+srv://u:[redacted]@h/db"),
            ("redis-cli|-u|redis://:x@h:6379/0", "redis-cli|-u|redis://:[redacted]@h:6379/0"),
            (
                "pip|install|--index-url|https://u:p@h/simple|a",
                "pip|install|--index-url|https://u:[redacted]@h/simple|a",
            ),
            ("curl|-x|http://u:p@proxy:3128|https://h/", "curl|-x|http://u:[redacted]@proxy:3128|https://h/"),
            ("winscp.com|/command|open sftp://u:p@h/", "winscp.com|/command|open sftp://u:[redacted]@h/"),
            ("env|https_proxy=http://u:p@proxy:80|app", "env|https_proxy=http://u:[redacted]@proxy:80|app"),
            ("restic|-r|rest:https://u:p@h/|backup", "restic|-r|rest:https://u:[redacted]@h/|backup"),
        ],
    );
}

#[test]
fn in_fields() {
    hidden_by(
        "secret-field",
        &[
            ("curl|https://h/?a=1&access_token=abc&b=2", "curl|https://h/?a=1&access_token=[redacted]&b=2"),
            ("azcopy|https://b/c?sv=1&sig=abc", "azcopy|https://b/c?sv=1&sig=[redacted]"),
            (
                "curl|-d|{\"user\": \"u\", \"password\": \"p\"}",
                "curl|-d|{\"user\": \"u\", \"password\": \"[redacted]\"}",
            ),
            (
                "curl|-d|{\"password\": \"p, q\", \"a\": 1}",
                "curl|-d|{\"password\": \"[redacted]\", \"a\": 1}",
            ),
            (
                "curl|-d|{\"password\": \"p\\\"q\", \"a\": 1}",
                "curl|-d|{\"password\": \"[redacted]\", \"a\": 1}",
            ),
            (
                "curl|-d|{\\\"token\\\": \\\"p q\\\", \\\"a\\\": 1}",
                "curl|-d|{\\\"token\\\": \\\"[redacted]\\\", \\\"a\\\": 1}",
            ),
            ("curl|-d|user=u&password=p", "curl|-d|user=u&password=[redacted]"),
            (
                "sql|Server=h;User Id=u;Password=p;Pwd=q;",
                "sql|Server=h;User Id=u;Password=[redacted];Pwd=[redacted];",
            ),
            ("app|[a] password = \"p q\" x = 1", "app|[a] password = \"[redacted]\" x = 1"),
            ("app|'password' => 'p', 'a' => 'b'", "app|'password' => '[redacted]', 'a' => 'b'"),
            (
                "az|x|--connection-string|DefaultEndpointsProtocol=https;AccountName=a;AccountKey=K==;E=c",
                "az|x|--connection-string|DefaultEndpointsProtocol=https;AccountName=a;AccountKey=[redacted];E=c",
            ),
            (
                "mount|-t|cifs|-o|username=u,password=p|//s/h",
                "mount|-t|cifs|-o|username=u,password=[redacted]|//s/h",
            ),
            (
                "helm|install|a|--set|image.tag=1,auth.password=x,b=c",
                "helm|install|a|--set|image.tag=1,auth.password=[redacted],b=c",
            ),
            (
                "ansible-playbook|-e|{\"ansible_ssh_pass\":\"x\"}",
                "ansible-playbook|-e|{\"ansible_ssh_pass\":\"[redacted]\"}",
            ),
            (
                "npm|config|set|//registry.npmjs.org/:_authToken=x",
                "npm|config|set|//registry.npmjs.org/:_authToken=[redacted]",
            ),
            (
                "npm|publish|--//registry.npmjs.org/:_authToken=x",
                "npm|publish|--//registry.npmjs.org/:_authToken=[redacted]",
            ),
            (
                "java|-jar|a|jdbc:sqlserver://h;user=sa;password=x;",
                "java|-jar|a|jdbc:sqlserver://h;user=sa;password=[redacted];",
            ),
            (
                "aws|x|--auth-parameters|USERNAME=u,PASSWORD=p",
                "aws|x|--auth-parameters|USERNAME=u,PASSWORD=[redacted]",
            ),
        ],
    );
}

#[test]
fn by_what_stands_between_begin_and_end() {
    hidden_by(
        "private-key",
        &[
            (
                "app|-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
                "app|-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----",
            ),
            (
                "app|--key|-----BEGIN PRIVATE KEY-----\\nabc",
                "app|--key|-----BEGIN PRIVATE KEY-----[redacted]",
            ),
            (
                "sh|-c|echo '-----BEGIN OPENSSH PRIVATE KEY----- a b -----END OPENSSH PRIVATE KEY-----' > k",
                "sh|-c|echo '-----BEGIN OPENSSH PRIVATE KEY-----[redacted]-----END OPENSSH PRIVATE KEY-----' > k",
            ),
        ],
    );
}

#[test]
fn by_a_pipe_into_what_reads_it() {
    hidden_by(
        "piped-secret",
        &[
            ("sh|-c|echo x ¦ sudo -S apt update", "sh|-c|echo [redacted] ¦ sudo -S apt update"),
            (
                "sh|-c|cd /x && echo 'x y' ¦ sudo -kS -p '' ls",
                "sh|-c|cd /x && echo '[redacted]' ¦ sudo -kS -p '' ls",
            ),
            ("bash|-c|echo root:x ¦ chpasswd", "bash|-c|echo root:[redacted] ¦ chpasswd"),
            (
                "bash|-c|printf '%s' x ¦ docker login --password-stdin",
                "bash|-c|printf '%s' [redacted] ¦ docker login --password-stdin",
            ),
            (
                "sh|-c|echo -n x ¦ gh auth login --with-token",
                "sh|-c|echo -n [redacted] ¦ gh auth login --with-token",
            ),
            ("sh|-c|echo x ¦ passwd --stdin jdoe", "sh|-c|echo [redacted] ¦ passwd --stdin jdoe"),
            ("bash|-c|sudo -S ls <<< x", "bash|-c|sudo -S ls <<< [redacted]"),
        ],
    );
}

/// `prefix` and so many letters and digits as no word has them.
fn token(prefix: &str, rest: usize) -> String {
    prefix.chars().chain("q7Zk2Xw9Lm4Rt8Pv".chars().cycle().take(rest)).collect()
}

fn like(prefix: &str, rest: usize, alphabet: &str) -> String {
    prefix.chars().chain(alphabet.chars().cycle().take(rest)).collect()
}

#[test]
fn by_the_looks_of_tokens() {
    let jwt = [token("eyJ", 17), token("eyJ", 30), token("", 43)].join(".");
    let upper = "Q7ZK2XW9";
    let hex = "0f1e2d3c4b5a6978";
    let tokens = [
        like("AKIA", 16, upper),
        like("ASIA", 16, upper),
        token("AIza", 35),
        token("GOCSPX-", 28),
        token("ya29.", 60),
        token("ghp_", 36),
        token("gho_", 36),
        token("ghs_", 36),
        token("github_pat_", 82),
        token("glpat-", 20),
        token("xoxb-123456789012-123456789012-", 24),
        token("xoxp-1-2-3-", 32),
        token("xapp-1-A0-1-", 64),
        token("sk_live_", 24),
        token("rk_live_", 24),
        token("sk_test_", 24),
        token("whsec_", 32),
        token("sk-", 48),
        token("sk-proj-", 48),
        token("sk-ant-api03-", 90),
        token("npm_", 36),
        token("pypi-AgEIcHlwaS5vcmc", 60),
        token("hvs.", 24),
        token("s.", 24),
        token("dop_v1_", 64),
        token("hf_", 34),
        token("dckr_pat_", 27),
        like("dapi", 32, hex),
        like("key-", 32, hex),
        like("SK", 32, hex),
        like("shpat_", 32, hex),
        format!("SG.{}.{}", token("", 22), token("", 43)),
        token("glsa_", 41),
        token("PMAK-", 59),
        token("tskey-auth-", 30),
        token("ATATT3x", 180),
        like("AGE-SECRET-KEY-1", 58, upper),
        token("alibi_host_", 60),
        token("alibi_user_", 60),
        jwt,
    ];
    for token in &tokens {
        check(&[], &format!("app|{token}|-v"), "app|[redacted]|-v", &[("token-shape", 1)]);
        check(
            &[],
            &format!("app|a:{token},x ({token})."),
            "app|a:[redacted],x ([redacted]).",
            &[("token-shape", 2)],
        );
    }
    let pat = &tokens[5];
    check(
        &[],
        &format!("git|clone|https://{pat}@h/r"),
        "git|clone|https://[redacted]@h/r",
        &[("url-password", 1)],
    );
    let secret = like("", 40, "wJalrXUtnFEMI/K7MDENG/bPxRfiCY+");
    let (id, one) = (&tokens[0], [("token-shape", 2)]);
    check(&[], &format!("app|{id}|{secret}|x"), "app|[redacted]|[redacted]|x", &one);
    check(&[], &format!("app|{id}:{secret}"), "app|[redacted]:[redacted]", &one);
    check(&[], &format!("app|{id}|s3://bucket"), "app|[redacted]|s3://bucket", &[("token-shape", 1)]);
}

#[test]
fn addresses_that_are_secrets_themselves() {
    let part = token("", 24);
    for (given, expected) in [
        (
            format!("curl|https://hooks.slack.com/services/T0/B0/{part}"),
            "curl|https://hooks.slack.com/services/[redacted]",
        ),
        (
            format!("curl|https://discord.com/api/webhooks/123/{part}?x=1"),
            "curl|https://discord.com/api/webhooks/123/[redacted]?x=1",
        ),
        (
            format!("curl|https://api.telegram.org/bot123:{part}/sendMessage"),
            "curl|https://api.telegram.org/bot[redacted]/sendMessage",
        ),
    ] {
        check(&[], &given, expected, &[("token-shape", 1)]);
    }
}
