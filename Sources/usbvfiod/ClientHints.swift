// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

/// The arguments with which a virtual machine monitor connects to a socket: to be copied and pasted.
struct ClientHints {
    let socketPath: String

    /// Memory is shared, because a server that cannot see it has to ask for each byte.
    var text: String {
        let cloudHypervisor = Self.shellWord("socket=\(socketPath)")
        let json =
            #"{"driver":"vfio-user-pci","socket":{"type":"unix","path":"\#(Self.json(socketPath))"}}"#
        return """
            Cloud Hypervisor connects with:
              cloud-hypervisor … --memory size=1G,shared=on --user-device \(cloudHypervisor)
            QEMU (10.1 or later) connects with:
              qemu-system-x86_64 … -machine q35,memory-backend=ram \\
                -object memory-backend-memfd,id=ram,size=1G,share=on \\
                -device \(Self.shellWord(json))

            """
    }

    /// Writes the text to stderr, where the log goes too: stdout stays free for data.
    func print() { _ = try? FileDescriptor.standardError.writeAll(text.utf8) }

    /// A word as a shell wants it: in quotes if it has more than harmless characters.
    static func shellWord(_ word: String) -> String {
        let harmless = word.allSatisfy { character in
            character.isASCII
                && (character.isLetter || character.isNumber || "/._-=,:+@".contains(character))
        }
        guard !harmless else { return word }
        var quoted = "'"
        for character in word { quoted += character == "'" ? #"'\''"# : String(character) }
        return quoted + "'"
    }

    /// The inside of a JSON string.
    static func json(_ text: String) -> String {
        var escaped = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": escaped += "\\\(scalar)"
            case _ where scalar.value < 0x20:
                let digits = String(scalar.value, radix: 16)
                escaped += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: escaped.unicodeScalars.append(scalar)
            }
        }
        return escaped
    }
}
