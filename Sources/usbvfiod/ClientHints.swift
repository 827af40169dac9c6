// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

/// The arguments with which a VMM connects to a socket, to copy and paste.
struct ClientHints {
    let socketPath: String

    /// The command lines. They share guest memory, because a server that cannot map it has to send
    /// the VMM a message for every access.
    var text: String {
        get throws {
            let cloudHypervisor = shellWord("socket=\(socketPath)")
            // The keys are in the order of QEMU's documentation, which an encoder does not keep.
            let path = try json(socketPath, [])
            let device =
                #"{"driver":"vfio-user-pci","socket":{"type":"unix","path":\#(path)}}"#
            return """
                Cloud Hypervisor connects with:
                  cloud-hypervisor … --memory size=1G,shared=on --user-device \(cloudHypervisor)
                QEMU (10.1 or later) connects with:
                  qemu-system-x86_64 … -machine q35,memory-backend=ram \\
                    -object memory-backend-memfd,id=ram,size=1G,share=on \\
                    -device \(shellWord(device))

                """
        }
    }

    /// Writes the text to standard error like the log, so that standard output stays free for data.
    func print() throws { _ = try? FileDescriptor.standardError.writeAll(text.utf8) }
}
