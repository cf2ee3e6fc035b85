//! Which programs take a secret, and how: one line for each way.

use super::{Apart, Attached, Behind, Each, Either, Long, Named, Nth, Program, Takes, Way};
use crate::enrich::redaction::hidden::Hidden::{
    self, After, AfterUser, Cookie, Header, Login, OracleLogin, UnlessAssignment, UnlessSwitch, Whole,
};

const fn program(names: &'static [&'static str], ways: &'static [Way]) -> Program {
    Program { names, bundled: "", ways }
}

const fn way(takes: Takes, hidden: Hidden) -> Way {
    Way { takes, hidden, after: &[] }
}

const fn after(after: &'static [&'static str], takes: Takes, hidden: Hidden) -> Way {
    Way { takes, hidden, after }
}

const USER: Hidden = AfterUser(':');
const SHARE: Hidden = AfterUser('%');

pub(super) const PROGRAMS: [Program; 78] = [
    // Of the web.
    Program {
        names: &["curl"],
        bundled: "#0123468aBfgGiIjklLMnNOpqRsSvZ",
        ways: &[
            way(Either("-u"), USER),
            way(Long("--user"), USER),
            way(Either("-U"), USER),
            way(Long("--proxy-user"), USER),
            way(Either("-H"), Header),
            way(Long("--header"), Header),
            way(Long("--proxy-header"), Header),
            way(Either("-b"), Cookie),
            way(Long("--cookie"), Cookie),
            way(Either("-E"), USER),
            way(Long("--cert"), USER),
            way(Long("--oauth2-bearer"), Whole),
        ],
    },
    program(
        &["wget", "wget2"],
        &[way(Either("-u"), USER), way(Long("--user"), USER), way(Long("--header"), Header)],
    ),
    program(
        &["http", "https", "xh", "xhs"],
        &[
            after(&["bearer", "jwt", "--auth-type=bearer"], Either("-a"), Whole),
            after(&["bearer", "jwt", "--auth-type=bearer"], Long("--auth"), Whole),
            way(Either("-a"), USER),
            way(Long("--auth"), USER),
            way(Each, Header),
        ],
    ),
    program(
        &["ab", "siege", "wrk", "hey"],
        &[way(Either("-A"), USER), way(Either("-a"), USER), way(Either("-H"), Header)],
    ),
    program(&["aria2c", "yt-dlp", "youtube-dl"], &[way(Apart("-p"), Whole)]),
    program(
        &["htpasswd"],
        &[
            after(&["-b", "-cb", "-bc", "-bB", "-Bb", "-cbB", "-cBb", "-bm", "-mb"], Nth(3), Whole),
            after(&["-nb", "-bn", "-nbB", "-nBb", "-bnB", "-bBn", "-Bbn"], Nth(2), Whole),
        ],
    ),
    // Databases.
    program(
        &[
            "mysql",
            "mysqldump",
            "mysqladmin",
            "mysqlimport",
            "mysqlcheck",
            "mysqlslap",
            "mariadb",
            "mariadb-dump",
            "mariadb-admin",
            "mycli",
        ],
        &[way(Attached("-p"), Whole)],
    ),
    program(&["mysqlsh"], &[way(Attached("-p"), Whole), way(Long("--uri"), Login), way(Each, Login)]),
    program(
        &["mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport", "mongostat"],
        &[way(Either("-p"), Whole)],
    ),
    program(&["redis-cli", "valkey-cli", "keydb-cli"], &[way(Apart("-a"), Whole)]),
    program(&["sqlcmd", "bcp", "isql", "osql", "tsql", "bteq"], &[way(Either("-P"), Whole)]),
    program(&["sqlplus", "sqlldr", "expdp", "impdp", "rman", "sqlcl"], &[way(Each, OracleLogin)]),
    program(&["cqlsh", "beeline", "cypher-shell", "rabbitmqadmin"], &[way(Apart("-p"), Whole)]),
    program(&["vsql"], &[way(Either("-w"), Whole)]),
    program(&["rabbitmqctl"], &[after(&["add_user", "change_password", "authenticate_user"], Nth(2), Whole)]),
    program(&["mosquitto_pub", "mosquitto_sub", "mosquitto_rr"], &[way(Either("-P"), Whole)]),
    // Logins elsewhere.
    program(&["sshpass"], &[way(Either("-p"), Whole)]),
    program(&["ssh-keygen"], &[way(Apart("-N"), Whole), way(Apart("-P"), Whole)]),
    // They have no such habit, and end that of the program that ran them.
    program(&["ssh", "scp", "rsync", "ssh-copy-id", "autossh"], &[]),
    program(&["lftp"], &[way(Either("-u"), AfterUser(','))]),
    program(
        &["ncftp", "ncftpput", "ncftpget", "ipmitool"],
        &[way(Apart("-p"), Whole), way(Apart("-P"), Whole)],
    ),
    program(
        &["ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami", "ldapcompare", "ldapmodrdn"],
        &[way(Either("-w"), Whole)],
    ),
    program(&["ldappasswd"], &[way(Either("-w"), Whole), way(Either("-s"), Whole), way(Either("-a"), Whole)]),
    program(
        &["smbclient", "rpcclient", "winexe", "smbget", "smbcacls", "wbinfo"],
        &[
            way(Either("-U"), SHARE),
            way(Long("--user"), SHARE),
            way(Either("-a"), SHARE),
            way(Behind("//"), Whole),
            way(Behind("\\\\"), Whole),
        ],
    ),
    program(&["smbmap", "evil-winrm"], &[way(Apart("-p"), Whole), way(Apart("-H"), Whole)]),
    program(&["nxc", "netexec", "crackmapexec", "cme"], &[way(Apart("-p"), Whole), way(Apart("-H"), Whole)]),
    program(
        &["secretsdump.py", "psexec.py", "wmiexec.py", "smbexec.py", "getuserspns.py", "getnpusers.py"],
        &[way(Apart("-hashes"), USER), way(Each, Login)],
    ),
    program(
        &["xfreerdp", "xfreerdp3", "wlfreerdp", "sdl-freerdp"],
        &[way(Attached("/p:"), Whole), way(Attached("/gp:"), Whole), way(Attached("/pth:"), Whole)],
    ),
    program(&["rdesktop", "openfortivpn"], &[way(Either("-p"), Whole)]),
    program(&["openconnect"], &[way(Long("--cookie"), Whole), way(Apart("-C"), Whole)]),
    program(
        &["snmpget", "snmpwalk", "snmpbulkwalk", "snmpset", "snmptrap", "snmptable"],
        &[way(Either("-c"), Whole), way(Apart("-A"), Whole), way(Apart("-X"), Whole)],
    ),
    program(&["nmcli"], &[after(&["wifi", "modify", "add", "con", "connection"], Named, Whole)]),
    program(&["wpa_passphrase"], &[way(Nth(2), Whole)]),
    // Archives and documents.
    program(
        &["7z", "7za", "7zz", "7zr", "rar", "unrar"],
        &[way(Attached("-p"), Whole), way(Attached("-hp"), Whole)],
    ),
    program(&["zip", "unzip", "zipcloak"], &[way(Either("-P"), Whole)]),
    program(&["qpdf"], &[after(&["--encrypt"], Nth(1), Whole), after(&["--encrypt"], Nth(2), Whole)]),
    program(
        &["pdftk"],
        &[way(Behind("input_pw"), Whole), way(Behind("user_pw"), Whole), way(Behind("owner_pw"), Whole)],
    ),
    program(&["steghide"], &[way(Apart("-p"), Whole)]),
    // Keys and vaults.
    program(
        &["openssl"],
        &[
            way(Apart("-passin"), After("pass:")),
            way(Apart("-passout"), After("pass:")),
            way(Apart("-pass"), After("pass:")),
            way(Apart("-k"), Whole),
            way(Apart("-K"), Whole),
            way(Apart("-psk"), Whole),
        ],
    ),
    program(
        &["pkcs11-tool", "softhsm2-util", "ykman", "yubico-piv-tool"],
        &[
            way(Either("-p"), Whole),
            way(Long("--pin"), Whole),
            way(Long("--so-pin"), Whole),
            way(Long("--new-pin"), Whole),
        ],
    ),
    program(
        &["vault", "bao"],
        &[
            after(&["login"], Nth(1), UnlessAssignment),
            after(&["unseal"], Nth(1), Whole),
            after(&["put", "patch"], Each, AfterUser('=')),
        ],
    ),
    program(
        &["bw"],
        &[after(&["unlock"], Nth(1), Whole), after(&["login"], Nth(2), Whole), way(Long("--session"), Whole)],
    ),
    program(
        &["security"],
        &[
            after(&["add-generic-password", "add-internet-password"], Either("-w"), Whole),
            after(&["unlock-keychain", "create-keychain", "set-key-partition-list"], Either("-p"), Whole),
            after(&["unlock-keychain", "create-keychain", "set-key-partition-list"], Either("-k"), Whole),
            after(&["import", "export"], Either("-P"), Whole),
        ],
    ),
    program(&["ansible-vault"], &[after(&["encrypt_string"], Nth(1), Whole)]),
    program(&["altool"], &[way(Apart("-p"), Whole)]),
    // Containers and clouds.
    program(
        &["docker", "podman", "nerdctl", "buildah", "skopeo", "crane", "oras"],
        &[
            after(&["login"], Either("-p"), Whole),
            way(Long("--creds"), USER),
            way(Long("--src-creds"), USER),
            way(Long("--dest-creds"), USER),
        ],
    ),
    program(
        &["kubectl", "oc"],
        &[after(&["login"], Either("-p"), Whole), after(&["secret"], Long("--from-literal"), AfterUser('='))],
    ),
    program(&["helm", "cf", "ibmcloud"], &[after(&["login"], Either("-p"), Whole)]),
    program(&["az"], &[after(&["login"], Either("-p"), Whole), after(&["secret"], Long("--value"), Whole)]),
    program(&["aws"], &[after(&["put-parameter", "put-secret-value"], Long("--value"), Whole)]),
    program(
        &["gh", "glab"],
        &[
            after(&["secret", "variable"], Either("-b"), Whole),
            after(&["secret"], Long("--body"), Whole),
            way(Either("-H"), Header),
            way(Long("--header"), Header),
        ],
    ),
    program(&["mc", "mcli"], &[after(&["set"], Nth(4), Whole), after(&["add"], Nth(4), Whole)]),
    program(&["rclone"], &[after(&["config"], Named, Whole), after(&["obscure"], Nth(1), Whole)]),
    program(&["pulumi"], &[after(&["--secret"], Nth(1), Whole)]),
    program(&["fly", "flyctl"], &[after(&["secrets"], Each, AfterUser('='))]),
    program(&["heroku"], &[after(&["config:set"], Each, AfterUser('='))]),
    program(&["doppler"], &[after(&["secrets"], Each, AfterUser('='))]),
    // Packages.
    program(&["npm", "pnpm", "yarn"], &[after(&["set"], Named, Whole)]),
    program(&["cargo"], &[after(&["login"], Nth(1), Whole)]),
    program(
        &["poetry"],
        &[
            after(&["publish"], Either("-p"), Whole),
            after(&["config"], Named, Whole),
            // `http-basic.name user secret`
            after(&["config"], Nth(3), Whole),
        ],
    ),
    program(&["twine"], &[way(Apart("-p"), Whole)]),
    program(
        &["dotnet", "nuget", "choco", "gem"],
        &[after(&["push", "apikey", "setapikey"], Apart("-k"), Whole), after(&["setapikey"], Nth(1), Whole)],
    ),
    // Users of this machine.
    program(&["useradd", "usermod", "adduser"], &[way(Apart("-p"), Whole)]),
    program(&["dscl"], &[after(&["-passwd"], Nth(1), Whole), after(&["-passwd"], Nth(2), Whole)]),
    program(&["networksetup"], &[after(&["-setairportnetwork"], Nth(3), Whole)]),
    program(
        &["net", "net1"],
        &[
            after(&["use"], Behind("\\\\"), Whole),
            after(&["use"], Behind("/user:"), Whole),
            after(&["user"], Nth(2), UnlessSwitch),
            way(Either("-U"), SHARE),
        ],
    ),
    program(&["netdom"], &[way(Attached("/pd:"), Whole), way(Attached("/po:"), Whole)]),
    program(&["netsh"], &[way(Attached("key="), Whole)]),
    program(
        &[
            "schtasks",
            "tasklist",
            "taskkill",
            "systeminfo",
            "getmac",
            "driverquery",
            "openfiles",
            "eventcreate",
            "gpresult",
            "gpupdate",
        ],
        &[way(Apart("/rp"), Whole), way(Apart("/p"), Whole)],
    ),
    program(&["wevtutil", "query", "manage-bde"], &[way(Attached("/p:"), Whole)]),
    program(&["winrs", "winrm"], &[way(Attached("-p:"), Whole), way(Attached("/p:"), Whole)]),
    program(
        &["psexec", "psexec64", "paexec", "pskill", "pslist", "psservice"],
        &[way(Apart("-p"), Whole), way(Apart("/p"), Whole)],
    ),
    program(&["sc"], &[way(Apart("password="), Whole)]),
    program(&["signtool", "certutil"], &[way(Apart("/p"), Whole), way(Apart("-p"), Whole)]),
    program(&["bitsadmin"], &[after(&["/setcredentials"], Nth(5), Whole)]),
    program(&["reg"], &[after(&["defaultpassword"], Apart("/d"), Whole)]),
    program(&["convertto-securestring"], &[way(Nth(1), Whole), way(Apart("-String"), Whole)]),
    program(&["sendemail", "swaks", "msmtp"], &[way(Apart("-xp"), Whole), way(Apart("-ap"), Whole)]),
];
