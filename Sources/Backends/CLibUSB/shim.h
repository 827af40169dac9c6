/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
#include <libusb.h>
#include <linux/usbdevice_fs.h>
#include <sys/ioctl.h>

/* libusb_set_option is variadic, which Swift cannot call. */
static inline int usbvfiod_libusb_disable_discovery(void)
{
    return libusb_set_option(NULL, LIBUSB_OPTION_NO_DEVICE_DISCOVERY);
}

/* The packets of an isochronous transfer: a flexible array, which Swift does not see. */
static inline struct libusb_iso_packet_descriptor *usbvfiod_iso_packets(
    struct libusb_transfer *transfer)
{
    return transfer->iso_packet_desc;
}

/* The USBDEVFS_CAP_ bits of an open device node, or 0. ioctl is variadic, which Swift cannot call. */
static inline unsigned int usbvfiod_usbfs_capabilities(int descriptor)
{
    unsigned int capabilities = 0;
    if (ioctl(descriptor, USBDEVFS_GET_CAPABILITIES, &capabilities) != 0)
        return 0;
    return capabilities;
}
